"""What all sections of the configuration file are."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping whose keys are all known, and which nobody changes."""

    # A misspelt key must stop the process: an ignored limit is no limit.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
