"""Teachers: judges of (document, label) pairs. `base` has the contract, and builds one."""

from ezxmc.teacher.base import Teacher, load_teacher

__all__ = ["Teacher", "load_teacher"]
