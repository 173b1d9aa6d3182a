"""Puts `templates/` and `tuned/` into wheels; editable installs read the checkout itself."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DataFolders(BuildHookInterface[Any]):
    """Adds the two data folders to standard wheels only: copies in an editable install go stale."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling with version "standard" or "editable"."""
        if version == "standard":
            build_data["force_include"]["templates"] = "kernelforge/_templates"
            build_data["force_include"]["tuned"] = "kernelforge_runtime/_tuned"
