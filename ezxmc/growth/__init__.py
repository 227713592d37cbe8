"""`ezxmc run --update`: a finished run follows its catalog."""

from ezxmc.growth.update import update

__all__ = ["update"]
