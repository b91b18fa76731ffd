"""The one way into the `tokenizers` package with what files hold."""

import contextlib


@contextlib.contextmanager
def refused(what):
    """Let all that goes wrong in a block be a `ValueError` that begins with `what`.

    The package raises bare exceptions, and panics, which `except Exception` does not catch; and files hold values of
    any type.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        text = f"{error!s:.1000}" or type(error).__name__
        if isinstance(error, ValueError) and str(what) in text:
            raise
        raise ValueError(f"{what}: {text}") from error
