"""`EndpointPickerConfig` files: read strictly, with every mistake named by file, line and path."""

from epp.configuration.catalogue import Description, ParameterDescription, describe
from epp.configuration.defaults import DEFAULT_TEXT
from epp.configuration.loader import Configuration, PluginSpec, ProfileSpec, build, load, load_default
from epp.configuration.parts import (
    ExtractorSettings,
    FileDiscovery,
    InFlightSettings,
    MetricsSettings,
    PrefixSettings,
    QuotaSettings,
    TokenSettings,
)
from epp.configuration.problems import ConfigurationError, Problem
from epp.configuration.schema import json_schema, render_schema

__all__ = [
    "DEFAULT_TEXT",
    "Configuration",
    "ConfigurationError",
    "Description",
    "ExtractorSettings",
    "FileDiscovery",
    "InFlightSettings",
    "MetricsSettings",
    "ParameterDescription",
    "PluginSpec",
    "PrefixSettings",
    "Problem",
    "ProfileSpec",
    "QuotaSettings",
    "TokenSettings",
    "build",
    "describe",
    "json_schema",
    "load",
    "load_default",
    "render_schema",
]
