"""Every message of the wire, one frozen type per kind. ``wire.cddl`` is the normative form, this is its Python form.

A message is a CBOR map with small integer keys; key 0 is the kind. Fields carry their key as ``name="N"`` and their
bounds as ``Meta``: msgspec enforces both when ``codec.decode`` builds the object, so every Message is valid. Records
that come in bulk (digest entries, tokens) are packed into byte strings; ``blocks.py`` defines the layout.

Each plane has a file of types; other code imports them from here.
"""

from mycelia.proto.wire.bounds import ENTRY_BYTES as ENTRY_BYTES
from mycelia.proto.wire.bounds import MAX_BIASES as MAX_BIASES
from mycelia.proto.wire.bounds import MAX_CANDIDATES as MAX_CANDIDATES
from mycelia.proto.wire.bounds import MAX_CELL_BITS as MAX_CELL_BITS
from mycelia.proto.wire.bounds import MAX_CHAT_BYTES as MAX_CHAT_BYTES
from mycelia.proto.wire.bounds import MAX_CHAT_MESSAGES as MAX_CHAT_MESSAGES
from mycelia.proto.wire.bounds import MAX_COMING as MAX_COMING
from mycelia.proto.wire.bounds import MAX_DEMANDED as MAX_DEMANDED
from mycelia.proto.wire.bounds import MAX_GRAMMAR_CHARS as MAX_GRAMMAR_CHARS
from mycelia.proto.wire.bounds import MAX_LINKS as MAX_LINKS
from mycelia.proto.wire.bounds import MAX_LOGPROBS as MAX_LOGPROBS
from mycelia.proto.wire.bounds import MAX_LOGPROBS_PER_FRAME as MAX_LOGPROBS_PER_FRAME
from mycelia.proto.wire.bounds import MAX_MODEL_NODES as MAX_MODEL_NODES
from mycelia.proto.wire.bounds import MAX_MODELS as MAX_MODELS
from mycelia.proto.wire.bounds import MAX_NAMESPACES as MAX_NAMESPACES
from mycelia.proto.wire.bounds import MAX_OPTIONS_CHARS as MAX_OPTIONS_CHARS
from mycelia.proto.wire.bounds import MAX_SALT_CHARS as MAX_SALT_CHARS
from mycelia.proto.wire.bounds import MAX_SMALL as MAX_SMALL
from mycelia.proto.wire.bounds import MAX_STOP_CHARS as MAX_STOP_CHARS
from mycelia.proto.wire.bounds import MAX_STOPS as MAX_STOPS
from mycelia.proto.wire.bounds import MAX_TEXT_BYTES_PER_FRAME as MAX_TEXT_BYTES_PER_FRAME
from mycelia.proto.wire.bounds import MAX_TEXT_BYTES_PER_TOKEN as MAX_TEXT_BYTES_PER_TOKEN
from mycelia.proto.wire.bounds import MAX_TOKENS_PER_FRAME as MAX_TOKENS_PER_FRAME
from mycelia.proto.wire.bounds import MAX_TOKENS_PER_REQUEST as MAX_TOKENS_PER_REQUEST
from mycelia.proto.wire.bounds import MAX_TRACE_STEPS as MAX_TRACE_STEPS
from mycelia.proto.wire.bounds import MAX_VECTOR as MAX_VECTOR
from mycelia.proto.wire.bounds import MIN_LOGPROB as MIN_LOGPROB
from mycelia.proto.wire.bounds import Kind as Kind
from mycelia.proto.wire.bounds import Record as Record
from mycelia.proto.wire.entry import KEEP_ALIVE as KEEP_ALIVE
from mycelia.proto.wire.entry import MAX_TEXT_TOKENS as MAX_TEXT_TOKENS
from mycelia.proto.wire.entry import Answered as Answered
from mycelia.proto.wire.entry import Ask as Ask
from mycelia.proto.wire.entry import Begun as Begun
from mycelia.proto.wire.entry import CandidateTerms as CandidateTerms
from mycelia.proto.wire.entry import ChatMessage as ChatMessage
from mycelia.proto.wire.entry import Conversation as Conversation
from mycelia.proto.wire.entry import EntryFrame as EntryFrame
from mycelia.proto.wire.entry import Route as Route
from mycelia.proto.wire.entry import Text as Text
from mycelia.proto.wire.inspection import Demand as Demand
from mycelia.proto.wire.inspection import DemandQuery as DemandQuery
from mycelia.proto.wire.inspection import Inspect as Inspect
from mycelia.proto.wire.inspection import Link as Link
from mycelia.proto.wire.inspection import Links as Links
from mycelia.proto.wire.inspection import LinksQuery as LinksQuery
from mycelia.proto.wire.inspection import ModelDemand as ModelDemand
from mycelia.proto.wire.inspection import ModelNodes as ModelNodes
from mycelia.proto.wire.inspection import Models as Models
from mycelia.proto.wire.inspection import ModelsQuery as ModelsQuery
from mycelia.proto.wire.inspection import Reach as Reach
from mycelia.proto.wire.inspection import ReachQuery as ReachQuery
from mycelia.proto.wire.inspection import Trace as Trace
from mycelia.proto.wire.inspection import TraceQuery as TraceQuery
from mycelia.proto.wire.inspection import TraceStep as TraceStep
from mycelia.proto.wire.metadata import Announce as Announce
from mycelia.proto.wire.metadata import Control as Control
from mycelia.proto.wire.metadata import Delta as Delta
from mycelia.proto.wire.metadata import Gossip as Gossip
from mycelia.proto.wire.metadata import Head as Head
from mycelia.proto.wire.metadata import Hello as Hello
from mycelia.proto.wire.metadata import Reconcile as Reconcile
from mycelia.proto.wire.metadata import Repair as Repair
from mycelia.proto.wire.metadata import RepairRequest as RepairRequest
from mycelia.proto.wire.metadata import Served as Served
from mycelia.proto.wire.metadata import Subscribe as Subscribe
from mycelia.proto.wire.metadata import Version as Version
from mycelia.proto.wire.metadata import Vitals as Vitals
from mycelia.proto.wire.metadata import VitalsUpdate as VitalsUpdate
from mycelia.proto.wire.serving import ERROR_CODES as ERROR_CODES
from mycelia.proto.wire.serving import Accepted as Accepted
from mycelia.proto.wire.serving import Bounced as Bounced
from mycelia.proto.wire.serving import Failed as Failed
from mycelia.proto.wire.serving import Final as Final
from mycelia.proto.wire.serving import Generate as Generate
from mycelia.proto.wire.serving import Logprob as Logprob
from mycelia.proto.wire.serving import PromptLogprobs as PromptLogprobs
from mycelia.proto.wire.serving import Sampling as Sampling
from mycelia.proto.wire.serving import ServingFrame as ServingFrame
from mycelia.proto.wire.serving import TokenLogprobs as TokenLogprobs
from mycelia.proto.wire.serving import Tokens as Tokens
from mycelia.proto.wire.serving import Usage as Usage
from mycelia.proto.wire.swarm import MAX_CONTACT_ADDRESSES as MAX_CONTACT_ADDRESSES
from mycelia.proto.wire.swarm import MAX_CONTACTS as MAX_CONTACTS
from mycelia.proto.wire.swarm import MAX_INVITATIONS as MAX_INVITATIONS
from mycelia.proto.wire.swarm import MAX_MEMBERS as MAX_MEMBERS
from mycelia.proto.wire.swarm import MAX_OLD_KEYS as MAX_OLD_KEYS
from mycelia.proto.wire.swarm import Contact as Contact
from mycelia.proto.wire.swarm import Invitation as Invitation
from mycelia.proto.wire.swarm import Join as Join
from mycelia.proto.wire.swarm import JoinKey as JoinKey
from mycelia.proto.wire.swarm import JoinRefused as JoinRefused
from mycelia.proto.wire.swarm import Member as Member
from mycelia.proto.wire.swarm import Roster as Roster
from mycelia.proto.wire.swarm import RosterQuery as RosterQuery
from mycelia.proto.wire.swarm import SwarmMessage as SwarmMessage
from mycelia.proto.wire.vectors import MAX_TEXTS as MAX_TEXTS
from mycelia.proto.wire.vectors import MAX_WIDTH as MAX_WIDTH
from mycelia.proto.wire.vectors import EmbedTexts as EmbedTexts
from mycelia.proto.wire.vectors import ModelUse as ModelUse
from mycelia.proto.wire.vectors import TextVectors as TextVectors
from mycelia.proto.wire.vectors import Uses as Uses
from mycelia.proto.wire.vectors import UsesQuery as UsesQuery

Message = (
    Control
    | Gossip
    | Generate
    | ServingFrame
    | Ask
    | EntryFrame
    | Inspect
    | ModelsQuery
    | Models
    | SwarmMessage
    | EmbedTexts
    | TextVectors
    | UsesQuery
    | Uses
    | DemandQuery
    | Demand
)
