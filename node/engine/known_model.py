"""What the parent of an engine process knows of the model, and the settings of its next child."""

from dataclasses import replace

from mycelia.node.engine import ipc
from mycelia.node.engine.child_process import model_info
from mycelia.node.engine.engine import ModelInfo
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.answers.spelling import Vocabulary
from mycelia.proto.wire.errors import LocalError


class KnownModel:
    """The part of a ``ProcessEngine`` that stays over its children."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.vocabulary: Vocabulary | None = None
        self.loaded: ipc.Loaded | None = None
        """What the latest child said of the model; None before the first child of this run has loaded it."""
        self.num_cells = settings.cells
        """KV cells; None until the first child has chosen. Later children take as many: the node announced them."""
        self.cache_tokens = 0
        """Maximum number of tokens of idle prefixes in KV cells and host memory; 0 until a child has loaded."""
        self._info: ModelInfo | None = None

    @property
    def info(self) -> ModelInfo:
        assert self._info is not None, "open_engine hands out loaded engines only"
        return self._info

    @property
    def is_known(self) -> bool:
        """Whether ``info`` is."""
        return self._info is not None

    def recall(self, message: ipc.Loaded) -> None:
        """Know the model as an earlier run loaded it, before it is loaded. It must be the same then. Mutates."""
        self._info = model_info(self.settings, message)
        if self.vocabulary is None and message.piece_ends:
            self.vocabulary = Vocabulary(message.piece_ends, message.pieces)
        self.num_cells = self.num_cells or message.cells
        self.cache_tokens = message.cache_tokens

    def learn(self, message: ipc.Loaded) -> None:
        """A child has loaded the model. Raises LocalError when it is another one than before. Mutates."""
        if self._info not in (None, model_info(self.settings, message)):
            raise LocalError(f"{self.settings.model_path} is not the model it was; restart the node to serve it")
        self.recall(message)
        self.loaded = message

    def give_room(self, room_bytes: int) -> None:
        """Let later children take this much memory. Mutates."""
        self.settings = replace(self.settings, room_bytes=room_bytes)
