"""Teachers: judges of (document, label) pairs. `base` has the contract, `factory` builds one."""

from ezxmc.teacher.base import Teacher
from ezxmc.teacher.factory import load_teacher

__all__ = ["Teacher", "load_teacher"]
