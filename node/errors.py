"""What nurseries make of errors: groups, from which a caller wants the one that matters."""

from proto.errors import MyceliaError


def first_error(exc: BaseException) -> BaseException:
    """The error that matters of a group, however deep: one of ours before anything else. Others come back as they
    are."""
    while isinstance(exc, BaseExceptionGroup):
        ours = exc.subgroup(MyceliaError)
        exc = (ours if ours is not None else exc).exceptions[0]
    return exc
