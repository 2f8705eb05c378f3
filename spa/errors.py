"""Errors that are the user's to mend, told in one line."""


class InputError(Exception):
    """The user's input is wrong; the message names file, row, column and what was expected."""


class Interrupted(Exception):
    """The job was asked to stop and left a state it can continue from; the message holds the command."""
