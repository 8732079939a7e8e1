"""A node's model as it is named on the command line: fetched before the node starts, if it is not here."""


def model_here(name: str, in_log: bool = True) -> str:
    """``name`` if it is a packaged model's, ``fake`` or a path; else the path of the model's file, which is fetched if
    it is not here. in_log: how that is told, if not on a terminal. Raises LocalError. Blocks."""
    from mycelia.node.models.find import MissingError, find_model, source_of

    if source_of(name) is None:
        return name
    try:
        return str(find_model(name))
    except MissingError:
        from mycelia.node.models.pull import obtain  # (imports huggingface_hub)
        from mycelia.node.terminal.models import watching

        with watching(in_log) as watch:
            return str(obtain(name, watch))


def other_name(asked: str, model: str) -> list[tuple[str, str]]:
    """The alias under which a model of the catalogue is served besides its file's name. model: see ``model_here``."""
    from mycelia.node.engine.models import model_name

    is_short = asked != model and not set(asked) & set(":/")
    return [(asked, model_name(model))] if is_short else []
