"""The one error that users are meant to see."""


class UserError(Exception):
    """A problem the user can solve: one sentence naming the file, the structure and the way out.

    Command lines print the message without a traceback and exit with status 2.
    """
