"""Sharing: rows of features travel between stores, and a team's repository is one more store."""

from featstore.sharing.diff import Diff, SegmentDiff, diff
from featstore.sharing.push_pull import Moved, merge, pull, push
from featstore.sharing.remote import Listed, list_remote
from featstore.sharing.selection import Selection

__all__ = ["Diff", "Listed", "Moved", "SegmentDiff", "Selection", "diff", "list_remote", "merge", "pull", "push"]
