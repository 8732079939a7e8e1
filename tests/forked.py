"""Processes of tests that run a module of Mycelia: forked from one that has imported everything.

A node, its engine and each command would spend half a second on imports, and the tests start hundreds of them. So
``installed`` replaces ``subprocess.Popen``: a command ``python -P -m mycelia...`` becomes a request to the fork server,
this file as a program. The server has no threads, forks, and the child then does what a new interpreter would do: it
takes the standard streams, environment and folder, becomes ``__main__`` and runs the module. Everything else about the
process is real. Only its parent is the server, so tests that follow processes to their children use the fixture
``fresh_processes``. With ``pytest --full`` all processes are fresh.

The server and the process that asked share a connection for each child. The child's exit code comes through it, and the
server reaps the child when it is closed: until then the process id cannot belong to another process.
"""

import atexit
import ctypes
import gc
import importlib
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec

_PYTHON = (sys.executable, "-P", "-m")
_NAMESPACE = ("ip", "netns", "exec")
_OPTIONS = (
    *("executable", "preexec_fn", "close_fds", "pass_fds", "cwd", "env", "startupinfo", "creationflags", "shell"),
    *("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"),
    *("restore_signals", "gid", "gids", "uid", "umask", "start_new_session", "process_group"),
)
"""The parameters of ``Popen._execute_child`` after the command."""
_FRESH = {"preexec_fn": None, "pass_fds": (), "shell": False, "gid": None, "gids": None, "uid": None, "umask": -1}
"""Options with which alone a process is forked."""
_VARIABLES = (b"PYTHONPATH", b"LD_PRELOAD", b"OMP_WAIT_POLICY")
"""Variables that a process reads when it starts: a process with others is not forked."""
_READ_VARIABLES = ("node.models.hub", "node.models.pull")
"""Modules that import huggingface_hub, which reads the environment as it is then."""
_CLONE_NEWNET = 0x40000000


class Start(msgspec.Struct, frozen=True):
    """A request to the fork server; the standard streams come with it. namespace: of the network; empty: as now."""

    module: str
    arguments: list[bytes]
    environment: dict[bytes, bytes]
    folder: bytes
    namespace: str
    new_session: bool


def _start_of(command: list[Any], options: dict[str, Any]) -> Start | None:
    """The request for ``command``; None when only a new interpreter does what is wanted."""
    if any(options[name] != value for name, value in _FRESH.items()) or options["executable"] not in (None, command[0]):
        return None
    namespace = ""
    if tuple(command[:3]) == _NAMESPACE:
        namespace, command = command[3], command[4:]
        if Path("/etc/netns", namespace).exists():  # (ip shows these files to the process in place of the machine's)
            return None
    if tuple(command[:3]) != _PYTHON or not str(command[3]).startswith("mycelia."):
        return None
    given = os.environ if options["env"] is None else options["env"]
    environment = {os.fsencode(name): os.fsencode(value) for name, value in given.items()}
    if any(environment.get(name) != os.environb.get(name) for name in _VARIABLES):
        return None
    folder = os.path.join(os.getcwdb(), os.fsencode(options["cwd"] or b""))
    arguments = [os.fsencode(word) for word in command[4:]]
    return Start(str(command[3]), arguments, environment, folder, namespace, options["start_new_session"])


class ForkServer:
    """The fork server as its clients see it. It starts with the first request."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, start: Start, streams: Sequence[int]) -> tuple[int, socket.socket]:
        """Returns the new process's id, and the connection through which its exit code comes."""
        body = msgspec.msgpack.encode(start)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._path)
        socket.send_fds(connection, [len(body).to_bytes(4, "little")], streams)
        connection.sendall(body)
        return int.from_bytes(_read(connection, 4), "little"), connection

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[Self]:
        with tempfile.TemporaryDirectory(prefix="forks-") as folder:
            server = cls(f"{folder}/server")
            try:
                yield server
            finally:
                server.close()

    def start(self) -> None:
        """Starts the server unless it runs. Only the process that made this object may call this."""
        with self._lock:
            if self._process is None:
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(self._path)
                    listener.listen(128)
                    command = [*_PYTHON[:2], __file__, str(listener.fileno()), self._path]
                    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()  # (the end of its standard input ends it)


class _Process(subprocess.Popen[bytes]):
    """A process that is forked by the server if that can run it."""

    server: ForkServer
    is_owner: bool
    _connection: socket.socket | None = None
    _close_pipe_fds: Callable[..., None]

    def _execute_child(self, args: Any, *given: Any) -> None:
        options = dict(zip(_OPTIONS, given, strict=True))
        command = [args] if isinstance(args, str | bytes | os.PathLike) else list(args)
        start = _start_of(command, options)
        if start is None:
            super()._execute_child(args, *given)  # type: ignore[misc]
            return
        if self.is_owner:
            self.server.start()
        self._reading = threading.Lock()
        ours = (options[name] for name in ("p2cread", "c2pwrite", "errwrite"))
        streams = [number if fd == -1 else fd for number, fd in enumerate(ours)]
        self.pid, self._connection = self.server.ask(start, streams)
        self._child_created = True
        self._close_pipe_fds(*(options[name] for name in _OPTIONS[9:15]))

    def _internal_poll(self, *args: Any, **kwargs: Any) -> int | None:
        if self._connection is None:
            return super()._internal_poll(*args, **kwargs)  # type: ignore[misc, no-any-return]
        return self._exit_code(0)

    def _wait(self, timeout: float | None) -> int:
        if self._connection is None:
            return super()._wait(timeout)  # type: ignore[misc, no-any-return]
        code = self._exit_code(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def _exit_code(self, timeout: float | None) -> int | None:
        assert self._connection is not None
        with self._reading:
            if self.returncode is None:
                poll = select.poll()
                poll.register(self._connection, select.POLLIN)
                if not poll.poll(None if timeout is None else 1000 * timeout):
                    return None
                said = self._connection.recv(4)  # (nothing: the server was killed)
                self.returncode = int.from_bytes(said, "little", signed=True) if said else -signal.SIGKILL
                self._connection.close()
            return self.returncode


def _replace_popen(server: ForkServer, is_owner: bool) -> Callable[[], None]:
    """Makes ``subprocess.Popen`` one that asks ``server``. Returns what undoes that."""
    before = subprocess.Popen
    made = type("Popen", (_Process,), {"server": server, "is_owner": is_owner})
    vars(subprocess)["Popen"] = made
    return partial(vars(subprocess).__setitem__, "Popen", before)


@contextmanager
def installed() -> Iterator[None]:
    """Processes are forked during the block."""
    with ForkServer.opened() as server:
        undo = _replace_popen(server, is_owner=True)
        try:
            yield
        finally:
            undo()


@contextmanager
def not_installed() -> Iterator[None]:
    """Processes are started anew during the block."""
    now = subprocess.Popen
    if issubclass(now, _Process):
        vars(subprocess)["Popen"] = _Process.__mro__[1]
    try:
        yield
    finally:
        vars(subprocess)["Popen"] = now


# --- the server ---------------------------------------------------------------------------------------------------


def _read(connection: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        piece = connection.recv(num_bytes - len(data))
        if not piece:
            raise EOFError("the other side has ended")
        data += piece
    return data


class _Server:
    """Forks until its standard input ends."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(0, selectors.EVENT_READ, self._end)
        self._children: dict[int, tuple[socket.socket, int]] = {}
        """Process id -> its connection and pidfd. An entry lasts until the child has ended and is reaped."""

    def serve(self) -> tuple[Start, list[int]]:
        """Returns in each child, with what it shall become and its standard streams."""
        while True:
            for key, _ in self._selector.select():
                child: tuple[Start, list[int]] | None = key.data()
                if child is not None:
                    return child

    def _end(self) -> None:
        os._exit(0)

    def _accept(self) -> tuple[Start, list[int]] | None:
        connection, _ = self._listener.accept()
        try:
            size, streams, _, _ = socket.recv_fds(connection, 4, 3)
            body = _read(connection, int.from_bytes(size, "little"))
        except (EOFError, OSError):
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            connection.close()
            self._leave()
            return msgspec.msgpack.decode(body, type=Start), streams
        for fd in streams:
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._children[pid] = connection, pidfd
        self._selector.register(pidfd, selectors.EVENT_READ, partial(self._ended, pid))
        self._selector.register(connection, selectors.EVENT_READ, partial(self._forgotten, pid))
        _send(connection, pid)
        return None

    def _leave(self) -> None:
        """In the child: close what is the server's."""
        self._selector.close()
        self._listener.close()
        for connection, pidfd in self._children.values():
            connection.close()
            os.close(pidfd)

    def _ended(self, pid: int) -> None:
        connection, pidfd = self._children[pid]
        self._selector.unregister(pidfd)
        how = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert how is not None
        _send(connection, how.si_status if how.si_code == os.CLD_EXITED else -how.si_status)

    def _forgotten(self, pid: int) -> None:
        """Nobody waits for the child any more: reap it, now or when it ends."""
        connection, pidfd = self._children[pid]
        self._selector.unregister(connection)
        if pidfd in self._selector.get_map():
            self._selector.modify(pidfd, selectors.EVENT_READ, partial(self._reap, pid))
        else:
            self._reap(pid)

    def _reap(self, pid: int) -> None:
        connection, pidfd = self._children.pop(pid)
        if pidfd in self._selector.get_map():
            self._selector.unregister(pidfd)
        os.waitpid(pid, 0)
        connection.close()
        os.close(pidfd)


def _send(connection: socket.socket, number: int) -> None:
    with suppress(OSError):  # (the process that asked was killed)
        connection.sendall(number.to_bytes(4, "little", signed=True))


def _become(start: Start, streams: list[int], server: ForkServer) -> None:
    """Does what the interpreter does at its start, and runs the module."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # (ignored where the tests run under nohup, and so in all children)
    if start.new_session:
        os.setsid()
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        old = getattr(sys, name)
        buffering = 1 if name == "stderr" else -1
        new = open(number, mode, buffering, old.encoding, old.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    os.environb.clear()
    os.environb.update(start.environment)
    if start.namespace:
        fd = os.open(f"/run/netns/{start.namespace}", os.O_RDONLY)
        if ctypes.CDLL(None).setns(fd, _CLONE_NEWNET):
            raise OSError(f"cannot enter the namespace {start.namespace}")
        os.close(fd)
    os.chdir(start.folder)
    sys.argv = ["-m", *map(os.fsdecode, start.arguments)]
    _replace_popen(server, is_owner=False)
    sys.modules.pop(start.module, None)
    code: object = None
    try:
        runpy.run_module(start.module, run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        code = exc.code
    if code is None or isinstance(code, int):
        _end(code or 0)
    sys.exit(str(code))


def _end(code: int) -> None:
    """Does what the interpreter does at its end, but frees no memory: that would copy all of it first."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()  # noqa: SLF001
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120
    os._exit(code)


def _import_everything() -> None:
    for root in ("mycelia.node", "mycelia.bench.hundred"):
        package = importlib.import_module(root)
        for found in pkgutil.walk_packages(package.__path__, f"{root}."):
            if not found.name.endswith(("__main__", *_READ_VARIABLES)):
                importlib.import_module(found.name)
    importlib.import_module("llguidance")
    assert "huggingface_hub" not in sys.modules, "its settings are those of its environment when it is imported"


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = _Server(socket.socket(fileno=int(sys.argv[1])))
    _import_everything()
    gc.collect()
    gc.freeze()
    start, streams = server.serve()
    _become(start, streams, ForkServer(sys.argv[2]))


if __name__ == "__main__":
    main()
