"""Tables of features in other people's formats: `registry` lists the formats, every reader gives a `FeatureTable`."""

from featstore.exchange.formats.table import FeatureFile

__all__ = ["FeatureFile"]
