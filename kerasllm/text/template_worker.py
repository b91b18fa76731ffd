"""Fills in chat templates: the program of the processes that `template_processes` starts.

It knows nothing of kerasllm, and imports jinja2 alone, once it is told where that is.
"""

import contextlib
import datetime
import functools
import json
import marshal
import os
import signal
import sys

TEXT, REFUSAL, SPENT = b"T", b"R", b"S"  # the last: the process has used up its memory
# Round what an assistant wrote: two characters that Unicode keeps for the inside of programs.
BEGIN, END = "\ufdd0", "\ufdd1"
MOST_SECONDS = 1  # of computing, for one answer
MOST_BYTES = 192 * 2**20  # beyond what the process has when it begins
MOST_TEXT_BYTES = 2**24
MOST_REASON = 1000


def main():
    """Answer requests until there are no more; what takes too long ends the process with SIGPROF.

    A request is a marshalled tuple, the arguments of `answer`; an answer is a letter and text. Both follow their
    length, see `send`. The program's arguments are the folders that packages are imported from.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who waits, and ends this too
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    sys.path[:] = sys.argv[1:]
    _environment()
    _limit_memory()
    while request := receive(0):
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        send(1, answer(*marshal.loads(request)))


def send(descriptor, content):
    """Write bytes after their length, 8 bytes."""
    content = memoryview(len(content).to_bytes(8, "little") + content)
    while content:
        content = content[os.write(descriptor, content) :]


def receive(descriptor):
    """The bytes that the other end sends; none if it has ended."""
    parts, missing = [], 8
    while missing > 0:
        part = os.read(descriptor, 2**20)
        if not part:
            return b""
        missing -= len(part)
        if not parts:  # A pipe gives at least the length at once.
            missing += int.from_bytes(part[:8], "little")
        parts.append(part)
    return b"".join(parts)[8:]


def answer(operation, *arguments):
    """What one of `OPERATIONS` gives, as a letter and the UTF-8 of its text, or of the reason why there is none."""
    try:
        text = OPERATIONS[operation](*arguments).encode("utf-8", "surrogatepass")
        if len(text) > MOST_TEXT_BYTES:
            raise ValueError(f"its text is longer than {MOST_TEXT_BYTES} bytes")
        return TEXT + text
    except MemoryError:
        return SPENT + f"it needs more than {MOST_BYTES // 2**20} MB of memory".encode()
    except Exception as error:  # whatever the template's expressions run into
        return REFUSAL + f"{error!s:.{MOST_REASON}}".encode("utf-8", "replace")


def render(template, chat, variables):
    """The text that a template makes of the messages of a chat."""
    return _compiled(template).render(messages=chat, **variables)


def render_marked(template, chat, variables):
    """The same with `BEGIN` and `END` round each `{% generation %}` of the template."""
    return _compiled(template, is_marked=True).render(messages=chat, **variables)


def variables_of(template):
    """The names of the variables that a template reads, a line each."""
    import jinja2.meta

    environment = _environment()
    return "\n".join(jinja2.meta.find_undeclared_variables(environment.parse(template)) - set(environment.globals))


OPERATIONS = {"render": render, "render_marked": render_marked, "variables_of": variables_of}


@functools.lru_cache(maxsize=16)
def _compiled(template, is_marked=False):
    return _environment(is_marked).from_string(template)


@functools.cache
def _environment(is_marked=False):
    import jinja2
    import jinja2.ext
    import jinja2.meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` says what an assistant wrote, for training."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

        def _write(self, caller):
            return f"{BEGIN}{caller()}{END}" if is_marked else caller()

    class Namespace(jinja2.utils.Namespace):
        """Without names that lead into Python."""

        def __init__(*args, **kwargs):
            self, *args = args
            attributes = dict(*args, **kwargs)
            for name in attributes:
                _check_attribute(name)
            jinja2.utils.Namespace.__init__(self, attributes)

        def __setitem__(self, name, value):
            _check_attribute(name)
            super().__setitem__(name, value)

    def refuse(message):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        options = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = Namespace
    return environment


class _Dict:
    """`dict` without the methods and attributes of a class."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


def _check_attribute(name):
    if isinstance(name, str) and name.startswith("_"):
        raise ValueError(f"a template's namespace must not hold {name!r}.")


def _limit_memory():
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows; macOS may refuse
        import resource

        with open("/proc/self/statm", "rb") as file:  # Linux; elsewhere the limit is not kept
            size = int(file.read().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = size + MOST_BYTES if most == resource.RLIM_INFINITY else min(most, size + MOST_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
