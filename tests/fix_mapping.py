"""Mappings for tests, from sections as an operator writes them."""

from typing import Any

from fastpath.mapping import Mapping
from sidecar.config_mapping import mapping_config


def mapping_of(section: dict[str, Any]) -> Mapping:
    """The section checked and compiled. ConfigError names the field that is wrong."""
    return Mapping(mapping_config(section))
