"""Data: read it, split it, and find out what is wrong with it."""

from lightune.data.columns import TASKS
from lightune.data.conversations import read_conversation_parts, read_conversations, split_conversations
from lightune.data.dialogues import SHAPES, Conversation, Conversations, ConversationSplits
from lightune.data.doctor import Finding, describe, examine
from lightune.data.examples import Columns, Example, Examples
from lightune.data.origins import check_there
from lightune.data.reading import read, read_parts
from lightune.data.splitting import Splits, split

__all__ = [
    "SHAPES", "TASKS", "Columns", "Conversation", "ConversationSplits", "Conversations", "Example", "Examples", "Finding", "Splits",
    "check_there", "describe", "examine", "read", "read_conversation_parts", "read_conversations", "read_parts", "split", "split_conversations",
]  # fmt: skip
