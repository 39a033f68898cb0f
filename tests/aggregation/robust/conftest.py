"""Departments with attackers among their clients."""

from attacked_clients import attacked, counting, department

__all__ = ["attacked", "counting", "department"]
