# SPDX-License-Identifier: MIT
"""Words beside figures."""


def counted(number: object, noun: str, form: str = "") -> str:
    """ "1 CPU", "2 CPUs"; the number as ``form`` has it, as ","."""
    return f"{number:{form}} {noun}{'s' if number != 1 else ''}"
