"""From the text of a configuration file to a frozen `Configuration`, or to all that is wrong with it; and from that to a pipeline."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Any, TypeVar

import msgspec

from epp.configuration import defaults, parts
from epp.configuration.annotations import Unsupported, generator_argument, record_of_struct
from epp.configuration.catalogue import BUILT_IN, Kind, NoSuchType, PluginType, find, names
from epp.configuration.file import (
    BandDefaults,
    BandEntry,
    File,
    FlowControlEntry,
    PluginEntry,
    ProfileEntry,
    Reference,
    SaturationEntry,
    SourceEntry,
)
from epp.configuration.problems import Problems, suggestion
from epp.configuration.shapes import (
    Field,
    Invalid,
    Number,
    Placed,
    Record,
    Truth,
    Unread,
)
from epp.configuration.text import line_of, parse
from epp.flow.settings import (
    ALL_BYTES,
    BAND_BYTES,
    BandSettings,
    Fairness,
    FlowSettings,
    Limit,
    Ordering,
    Policies,
    Programs,
    Reflective,
    Static,
)
from epp.pipeline import Faults, Pipeline, Profile

T = TypeVar("T", bound=parts.Settings)


class PluginSpec(msgspec.Struct, frozen=True):
    """A plugin that runs at picks, not yet made: `make(**arguments)`, and its generator under `generator` if it takes one."""

    name: str
    type: str
    make: Callable[..., Any]
    arguments: Mapping[str, Any]
    generator: str | None

    def build(self, rng: random.Random) -> Any:
        """Raises what the plugin's constructor raises: ValueError where it refuses its parameters."""
        chance = {self.generator: rng} if self.generator else {}
        return self.make(**self.arguments, **chance)


class ProfileSpec(msgspec.Struct, frozen=True):
    """A scheduling profile by the names of its plugins; scorers with their weights."""

    name: str
    filters: tuple[str, ...]
    scorers: tuple[tuple[str, float], ...]
    picker: str


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was understood, defaults filled in.

    `warnings` are for the log: what the file says without effect. `metrics` None: model servers are not scraped. `discovery`
    None: endpoints come from elsewhere than a file that the configuration names. `quota` None: no limits. `flow` None: nobody waits.
    """

    source: str
    plugins: Mapping[str, PluginSpec]
    profiles: tuple[ProfileSpec, ...]
    handler: str
    detector: str
    prefix: parts.PrefixSettings
    in_flight: parts.InFlightSettings
    tokens: parts.TokenSettings
    metrics: parts.MetricsSettings | None
    extractor: parts.ExtractorSettings
    discovery: parts.FileDiscovery | None
    parsers: tuple[str, ...]
    quota: parts.QuotaSettings | None
    flow: FlowSettings | None
    warnings: tuple[str, ...]


def load(text: str, source_name: str) -> Configuration:
    """Understand `text` (YAML or JSON), called `source_name` in messages.

    Raises ConfigurationError, with every mistake found.
    """
    problems = Problems(source_name)
    node = parse(text, problems)
    file = record_of_struct(File).read(node, "", problems) if node is not None else None
    problems.raise_any()
    assert isinstance(file, File)
    loaded = _Loader(file, problems).load(source_name)
    problems.raise_any()
    return loaded


def load_default() -> Configuration:
    """What holds without any file."""
    return load(defaults.DEFAULT_TEXT, "the built-in default")


def build(configuration: Configuration, rng: random.Random, faults: Faults) -> Pipeline:
    """The pipeline that `configuration` describes, all its chance drawn from `rng`."""
    plugins = {name: spec.build(rng) for name, spec in configuration.plugins.items()}
    profiles = [
        Profile(
            profile.name,
            filters=[(name, plugins[name]) for name in profile.filters],
            scorers=[(name, plugins[name], weight) for name, weight in profile.scorers],
            picker=(profile.picker, plugins[profile.picker]),
        )
        for profile in configuration.profiles
    ]
    return Pipeline(
        profiles,
        handler=(configuration.handler, plugins[configuration.handler]),
        faults=faults,
        plugins=plugins,
        detector=(configuration.detector, plugins[configuration.detector]),
    )


_GATES = {"flowControl": False, "haPopulateNonLeaderDatastore": True, "dataLayer": True}

_FAIRNESS: Mapping[str, Fairness] = {
    "global-strict-fairness-policy": "global-strict",
    "round-robin-fairness-policy": "round-robin",
    "weighted-token-fairness-policy": "weighted-tokens",
    "program-aware-fairness": "program-aware",
}
_ORDERING: Mapping[str, Ordering] = {
    "fcfs-ordering-policy": "fcfs",
    "edf-ordering-policy": "edf",
    "slo-deadline-ordering-policy": "slo-deadline",
    "shortest-prompt-ordering-policy": "shortest-prompt",
}

# Parameters of the prefix index that older files give to the scorer.
_OLD_PREFIX_FIELDS = {
    "hashBlockSize": Field("hashBlockSize", "hash_block_size", Number(True), None),
    "blockSize": Field("blockSize", "block_size", Number(True), None),
    "autoTune": Field("autoTune", "auto_tune", Truth(), None),
    **{
        field.name: msgspec.structs.replace(field, default=None)
        for field in record_of_struct(parts.PrefixSettings).fields
        if field.name != "autoTune"
    },
}

# Parameters by which a plugin says whose data it reads, and the type that has it.
_PRODUCERS = {
    "prefix_match_info_producer_name": "approx-prefix-cache-producer",
    "in_flight_load_producer_name": "inflight-load-producer",
    "producer": "core-metrics-extractor",
}


def _bytes_in_all(flow: FlowControlEntry) -> int:
    """What all bands may hold where the file does not say: no band is kept from what it was given."""
    bands = (flow.default_priority_band, flow.default_negative_priority_band, *flow.priority_bands)
    return max([ALL_BYTES, *[band.max_bytes or 0 for band in bands if band is not None]])


class _Entry(msgspec.Struct):
    """A plugin of the file whose parameters were understood. `settings` is None for one that runs at picks."""

    name: Placed
    type: PluginType
    spec: PluginSpec | None
    settings: parts.Settings | None


class _Loader:
    """Reads the parts of one file that depend on one another, adding what is wrong to `problems`."""

    def __init__(self, file: File, problems: Problems) -> None:
        self._file = file
        self._problems = problems
        self._warnings: list[str] = []
        self._entries: dict[str, _Entry] = {}
        self._broken: set[str] = set()
        self._old_prefix: dict[str, Any] = {}
        self._gates = dict(_GATES)

    def load(self, source: str) -> Configuration:
        for entry in self._file.plugins:
            self._plugin(entry)
        self._check_producers()
        self._read_gates()
        profiles = self._profiles()
        handler = self._handler(profiles)
        flow = self._file.flow_control
        detector = self._detector(flow)
        flow_settings = self._flow_control(flow or FlowControlEntry())
        metrics, extractor = self._data_layer()
        return Configuration(
            source=source,
            plugins={name: entry.spec for name, entry in self._entries.items() if entry.spec is not None},
            profiles=profiles,
            handler=handler,
            detector=detector,
            prefix=self._prefix(),
            in_flight=self._settings(parts.InFlightSettings) or parts.InFlightSettings(),
            tokens=self._settings(parts.TokenSettings) or parts.TokenSettings(),
            metrics=metrics,
            extractor=extractor,
            discovery=self._discovery(),
            parsers=self._parsers(),
            quota=self._settings(parts.QuotaSettings),
            flow=flow_settings if self._gates["flowControl"] else None,
            warnings=tuple(self._warnings),
        )

    # Plugins

    def _plugin(self, entry: PluginEntry) -> None:
        name = entry.name or entry.type
        if name.text in self._entries or name.text in self._broken:
            self._problems.add(name.line, name.path, f"there is already a plugin named {name.text!r}; give one a name")
            return
        made = self._made(name, entry)
        if made is None:
            self._broken.add(name.text)
        else:
            self._entries[name.text] = made

    def _made(self, name: Placed, entry: PluginEntry) -> _Entry | None:
        plugin_type = self._type(entry.type)
        if plugin_type is None:
            return None
        arguments = self._arguments(plugin_type, entry)
        if isinstance(arguments, Invalid):
            return None
        place = entry.parameters.node
        line = entry.type.line if place is None else line_of(place)
        path = entry.type.path.removesuffix("type") + "parameters"
        if not plugin_type.is_policy:
            settings: parts.Settings = plugin_type.make(**arguments)
            return _Entry(name, plugin_type, None, settings) if self._usable(settings, line, path) else None
        generator = generator_argument(plugin_type.make)
        spec = PluginSpec(name.text, plugin_type.name, plugin_type.make, arguments, generator)
        # A trial, so that what a constructor refuses is a problem of the file. It is anybody's code: all it raises counts.
        try:
            spec.build(random.Random(0))
        except Exception as error:
            told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            self._problems.add(line, path, told)
            return None
        return _Entry(name, plugin_type, spec, None)

    def _usable(self, settings: parts.Settings, line: int, path: str) -> bool:
        try:
            if isinstance(settings, parts.ExtractorSettings):
                settings.choice()
            if isinstance(settings, parts.TokenSettings):
                self._check_tokens(settings)
            if isinstance(settings, parts.QuotaSettings):
                settings.table()
            if isinstance(settings, parts.PriorityHoldback):
                settings.limit()
        except ValueError as error:
            self._problems.add(line, path, str(error))
            return False
        return True

    def _check_tokens(self, settings: parts.TokenSettings) -> None:
        if settings.vllm.node is not None or settings.uds_tokenizer_config.node is not None:
            raise ValueError(
                "tokenizing by another server is not part of this version; without it tokens are estimated"
            )
        if settings.estimate is not None:
            self._warnings.append("token-producer: estimate has no effect; images and videos count by fixed estimates")

    def _type(self, type_name: Placed) -> PluginType | None:
        try:
            return find(type_name.text)
        except NoSuchType as error:
            told = str(error) or f"unknown plugin type {type_name.text!r}; {suggestion(type_name.text, names())}"
            self._problems.add(type_name.line, type_name.path, told)
        except Unsupported as error:
            self._problems.add(type_name.line, type_name.path, str(error))
        return None

    def _arguments(self, plugin_type: PluginType, entry: PluginEntry) -> dict[str, Any] | Invalid:
        record = plugin_type.record
        if plugin_type.name == "single-profile-handler":
            return {}
        if entry.parameters.node is None:
            for field in record.missing({}):
                self._problems.add(
                    entry.type.line, entry.type.path.removesuffix(".type"), f"parameters.{field} is missing"
                )
            return Invalid() if record.missing({}) else {}
        if plugin_type.name != "prefix-cache-scorer":
            return record.arguments(entry.parameters.node, entry.parameters.path, self._problems)
        return self._prefix_arguments(record, entry.parameters)

    def _prefix_arguments(self, record: Record, parameters: Unread) -> dict[str, Any] | Invalid:
        assert parameters.node is not None
        both = Record(record.fields + tuple(_OLD_PREFIX_FIELDS.values()), record.make)
        arguments = both.arguments(parameters.node, parameters.path, self._problems)
        if isinstance(arguments, Invalid):
            return arguments
        old = {field.argument for field in _OLD_PREFIX_FIELDS.values()}
        self._old_prefix.update({name: value for name, value in arguments.items() if name in old})
        return {name: value for name, value in arguments.items() if name not in old}

    def _check_producers(self) -> None:
        for entry in self._entries.values():
            arguments = entry.spec.arguments if entry.spec and entry.type.name in BUILT_IN else {}
            for argument, wanted in _PRODUCERS.items():
                name = arguments.get(argument, wanted)
                known = self._entries.get(name)
                if name != wanted and (known is None or known.type.name != wanted):
                    path = f"{entry.name.path.rpartition('.')[0]}.parameters"
                    self._problems.add(entry.name.line, path, f"there is no plugin {name!r} of type {wanted}")

    def _resolve(self, reference: Placed, kinds: tuple[Kind, ...], also: Iterable[str] = ()) -> _Entry | None:
        """The plugin that is meant, or None with a problem added, which suggests plugins of `kinds` and the names `also`."""
        entry = self._entries.get(reference.text)
        if entry is None:
            if reference.text not in self._broken:
                usable = [name for name, known in self._entries.items() if set(kinds) & set(known.type.kinds)]
                told = f"no plugin is named {reference.text!r}; {suggestion(reference.text, [*usable, *also])}"
                self._problems.add(reference.line, reference.path, told)
            return None
        if not set(kinds) & set(entry.type.kinds):
            is_a = " and ".join(kind.value for kind in entry.type.kinds)
            told = f"{reference.text} is a {is_a}; here a {' or '.join(kind.value for kind in kinds)} is wanted"
            self._problems.add(reference.line, reference.path, told)
            return None
        return entry

    def _ensure(self, type_name: str) -> str:
        """The name of a plugin of that type, added if there is none."""
        for name, entry in self._entries.items():
            if entry.type.name == type_name:
                return name
        plugin_type = BUILT_IN[type_name]
        spec = PluginSpec(type_name, type_name, plugin_type.make, {}, generator_argument(plugin_type.make))
        self._entries[type_name] = _Entry(Placed(type_name, 1, "plugins"), plugin_type, spec, None)
        return type_name

    def _of_kind(self, kind: Kind) -> list[str]:
        return [name for name, entry in self._entries.items() if kind in entry.type.kinds]

    # Profiles

    def _profiles(self) -> tuple[ProfileSpec, ...]:
        if self._file.scheduling_profiles:
            return self._written_profiles(self._file.scheduling_profiles)
        filters, scorers = self._of_kind(Kind.FILTER), self._of_kind(Kind.SCORER)
        pickers = self._of_kind(Kind.PICKER)
        if len(pickers) > 1:
            second = self._entries[pickers[1]].name
            self._problems.add(
                second.line, second.path, "a second picker; name the profiles' plugins in schedulingProfiles"
            )
        weights = dict.fromkeys(scorers, 1.0)
        if not (filters or scorers or pickers or self._broken):
            weights = {self._ensure(name): weight for name, weight in defaults.DEFAULT_WEIGHTS.items()}
        picker = pickers[0] if pickers else self._ensure(defaults.DEFAULT_PICKER)
        return (ProfileSpec("default", tuple(filters), tuple(weights.items()), picker),)

    def _written_profiles(self, entries: Iterable[ProfileEntry]) -> tuple[ProfileSpec, ...]:
        profiles: dict[str, ProfileSpec] = {}
        for entry in entries:
            if entry.name.text in profiles:
                told = f"there is already a profile named {entry.name.text!r}"
                self._problems.add(entry.name.line, entry.name.path, told)
            profiles[entry.name.text] = self._profile(entry)
        return tuple(profiles.values())

    def _profile(self, entry: ProfileEntry) -> ProfileSpec:
        filters: list[str] = []
        scorers: list[tuple[str, float]] = []
        pickers: list[str] = []
        for reference in entry.plugins:
            found = self._resolve(reference.plugin_ref, (Kind.FILTER, Kind.SCORER, Kind.PICKER))
            if found is None:
                continue
            name, kinds = found.name.text, found.type.kinds
            if Kind.FILTER in kinds:
                filters.append(name)
            if Kind.SCORER in kinds:
                scorers.append((name, 1.0 if reference.weight is None else reference.weight))
            elif reference.weight is not None:
                self._warn(reference.plugin_ref, f"weight has no effect: {name} is no scorer")
            if Kind.PICKER in kinds:
                pickers.append(name)
            if len(pickers) > 1:
                told = f"a second picker in profile {entry.name.text!r}, which has {pickers[0]}"
                self._problems.add(reference.plugin_ref.line, reference.plugin_ref.path, told)
        picker = pickers[0] if pickers else self._ensure(defaults.DEFAULT_PICKER)
        return ProfileSpec(entry.name.text, tuple(filters), tuple(scorers), picker)

    def _handler(self, profiles: tuple[ProfileSpec, ...]) -> str:
        handlers = self._of_kind(Kind.PROFILE_HANDLER)
        if not handlers:
            if len(profiles) > 1:
                second = self._file.scheduling_profiles[1].name
                told = "a second profile needs a profile handler among the plugins, such as header-profile-handler"
                self._problems.add(second.line, second.path, told)
            return self._ensure(defaults.DEFAULT_HANDLER)
        if len(handlers) > 1:
            second = self._entries[handlers[1]].name
            self._problems.add(
                second.line, second.path, f"a second profile handler beside {handlers[0]}; one is allowed"
            )
        entry = self._entries[handlers[0]]
        if entry.type.name == defaults.DEFAULT_HANDLER and len(profiles) > 1:
            self._problems.add(
                entry.name.line, entry.name.path, f"{entry.name.text} cannot serve {len(profiles)} profiles"
            )
        if entry.type.name == "header-profile-handler" and len(profiles) > 1 and entry.spec:
            default = entry.spec.arguments.get("default_profile", "decode")
            if default not in {profile.name for profile in profiles}:
                told = f"defaultProfile {default!r} is no profile; {suggestion(default, [p.name for p in profiles])}"
                self._problems.add(entry.name.line, entry.name.path, told)
        return handlers[0]

    # The other parts

    def _read_gates(self) -> None:
        for gate in self._file.feature_gates:
            name, given, value = gate.text.partition("=")
            if name not in _GATES:
                self._problems.add(gate.line, gate.path, f"unknown feature gate {name!r}; {suggestion(name, _GATES)}")
            elif given and value not in ("true", "false"):
                self._problems.add(gate.line, gate.path, f"a gate is set to true or false, not {value!r}")
            else:
                self._gates[name] = value != "false"

    def _detector(self, flow: FlowControlEntry | None) -> str:
        if flow is not None and flow.saturation_detector is not None:
            return self._reference(flow.saturation_detector, Kind.SATURATION) or ""
        old = self._file.saturation_detector
        if old is None:
            return self._ensure(defaults.DEFAULT_DETECTOR)
        if old.plugin_ref is not None:
            found = self._resolve(old.plugin_ref, (Kind.SATURATION,))
            return found.name.text if found else ""
        return self._inline_detector(old)

    def _inline_detector(self, old: SaturationEntry) -> str:
        given = {field: getattr(old, field) for field in old.__struct_fields__ if field != "plugin_ref"}
        arguments = {field: value for field, value in given.items() if value is not None}
        make = BUILT_IN[defaults.DEFAULT_DETECTOR].make
        spec = PluginSpec("saturationDetector", defaults.DEFAULT_DETECTOR, make, arguments, None)
        place = Placed(spec.name, 1, spec.name)
        self._entries[spec.name] = _Entry(place, BUILT_IN[defaults.DEFAULT_DETECTOR], spec, None)
        return spec.name

    def _reference(self, reference: Reference, kind: Kind) -> str | None:
        found = self._resolve(reference.plugin_ref, (kind,))
        return found.name.text if found else None

    def _flow_control(self, flow: FlowControlEntry) -> FlowSettings:
        """Checked also where it has no effect because its gate is closed."""
        without = FlowControlEntry(saturation_detector=flow.saturation_detector)
        if not self._gates["flowControl"] and flow != without:
            self._warnings.append("flowControl has no effect without its feature gate, save for saturationDetector")
        default = self._band(flow.default_priority_band or BandDefaults())
        negative = flow.default_negative_priority_band
        return FlowSettings(
            bands=self._bands(flow.priority_bands),
            default=default,
            negative=default if negative is None else self._band(negative),
            max_requests=flow.max_requests or inf,
            max_bytes=flow.max_bytes or _bytes_in_all(flow),
            ttl_s=flow.default_request_ttl or inf,
            empty_ttl_s=(
                flow.default_request_ttl if flow.no_endpoint_request_ttl is None else flow.no_endpoint_request_ttl
            )
            or inf,
            limit=self._limit(flow.usage_limit_policy_plugin_ref),
            evicts_running=flow.enable_eviction,
        )

    def _bands(self, entries: Iterable[BandEntry]) -> dict[int, BandSettings]:
        bands: dict[int, BandSettings] = {}
        for entry in entries:
            priority = entry.priority
            if priority.number in bands:
                told = f"there is already a band of priority {priority.number}"
                self._problems.add(priority.line, priority.path, told)
            bands[priority.number] = self._band(entry)
        return bands

    def _band(self, entry: BandDefaults) -> BandSettings:
        fairness, fair = self._policy(entry.fairness_policy_ref, Kind.FAIRNESS, "global-strict-fairness-policy")
        ordering, shortest = self._policy(entry.ordering_policy_ref, Kind.ORDERING, "fcfs-ordering-policy")
        multiple = shortest if isinstance(shortest, parts.ShortestPrompt) else parts.ShortestPrompt()
        policies = Policies(
            fairness=_FAIRNESS[fairness],
            ordering=_ORDERING[ordering],
            wait_multiple=multiple.max_wait_multiple,
            weights=dict(fair.weights) if isinstance(fair, parts.WeightedTokens) else {},
            programs=fair.programs() if isinstance(fair, parts.ProgramFairness) else Programs(),
        )
        return BandSettings(
            max_requests=entry.max_requests or BandDefaults().max_requests,
            max_bytes=entry.max_bytes or BAND_BYTES,
            ttl_s=None if entry.request_ttl is None else entry.request_ttl or inf,
            policies=policies,
        )

    def _limit(self, reference: Placed | None) -> Limit:
        name, settings = self._policy(reference, Kind.USAGE_LIMIT, "static-usage-limit-policy")
        if isinstance(settings, parts.PriorityHoldback):
            return settings.limit()
        if isinstance(settings, parts.StaticLimit):
            return Static(settings.threshold)
        return Reflective() if name == "soft-reflective-ceiling-policy" else Static()

    def _policy(self, reference: Placed | None, kind: Kind, default: str) -> tuple[str, parts.Settings | None]:
        """The type that is meant, and its parameters where an entry among the plugins gives them."""
        if reference is None:
            return default, None
        # A policy type needs no entry among the plugins to be used as it is.
        as_is = [name for name, known in BUILT_IN.items() if kind in known.kinds and not known.record.missing({})]
        if reference.text not in self._entries and reference.text in as_is:
            return reference.text, None
        found = self._resolve(reference, (kind,), as_is)
        return (found.type.name, found.settings) if found else (default, None)

    def _data_layer(self) -> tuple[parts.MetricsSettings | None, parts.ExtractorSettings]:
        new, old = self._file.data_layer, self._file.data
        sources = new.sources if new else old.sources if old else ()
        peers = new.peer_discovery.plugin_ref if new and new.peer_discovery else None
        syncer = new.cross_replica_syncer_plugin_ref if new else None
        for reference in (peers, syncer):
            if reference is not None:
                told = "sharing state between replicas is not part of this version; remove this"
                self._problems.add(reference.line, reference.path, told)
        metrics, extractor = self._source(sources)
        inject = new is None or new.inject_defaults
        metrics = metrics or self._settings(parts.MetricsSettings) or (parts.MetricsSettings() if inject else None)
        return metrics, extractor or self._settings(parts.ExtractorSettings) or parts.ExtractorSettings()

    def _source(
        self, sources: tuple[SourceEntry, ...]
    ) -> tuple[parts.MetricsSettings | None, parts.ExtractorSettings | None]:
        metrics, extractor = None, None
        for number, entry in enumerate(sources):
            found = self._resolve(entry.plugin_ref, (Kind.SOURCE,))
            if number:
                self._problems.add(entry.plugin_ref.line, entry.plugin_ref.path, "a second data source; one is allowed")
            metrics = found.settings if found and isinstance(found.settings, parts.MetricsSettings) else metrics
            for reference in entry.extractors:
                read_by = self._resolve(reference.plugin_ref, (Kind.EXTRACTOR,))
                if read_by and isinstance(read_by.settings, parts.ExtractorSettings):
                    extractor = read_by.settings
        return metrics, extractor

    def _discovery(self) -> parts.FileDiscovery | None:
        reference = self._file.data_layer.discovery if self._file.data_layer else None
        found = self._resolve(reference.plugin_ref, (Kind.DISCOVERY,)) if reference else None
        return found.settings if found and isinstance(found.settings, parts.FileDiscovery) else None

    def _parsers(self) -> tuple[str, ...]:
        handler, old = self._file.request_handler, self._file.parser
        references = handler.parsers if handler else (old,) if old else ()
        found = [self._resolve(reference.plugin_ref, (Kind.PARSER,)) for reference in references]
        types = dict.fromkeys(entry.type.name for entry in found if entry)
        return tuple(types) or defaults.DEFAULT_PARSERS

    def _prefix(self) -> parts.PrefixSettings:
        settings = self._settings(parts.PrefixSettings) or parts.PrefixSettings()
        if self._old_prefix:
            self._warnings.append(
                "prefix-cache-scorer has parameters of the index; they belong to approx-prefix-cache-producer"
            )
        if self._old_prefix.keys() & {"hash_block_size", "block_size"} or settings.block_size_tokens > 64:
            self._warnings.append("blocks of the prefix index are 64 tokens; the block size given has no effect")
        known = set(settings.__struct_fields__)
        moved = {name: value for name, value in self._old_prefix.items() if name in known}
        return msgspec.structs.replace(settings, **moved)

    def _settings(self, kind: type[T]) -> T | None:
        """The settings that the one plugin of that kind gives; a second is a problem."""
        settings: T | None = None
        for entry in self._entries.values():
            if not isinstance(entry.settings, kind):
                continue
            if settings is not None:
                told = f"a second {entry.type.name}; one is allowed"
                self._problems.add(entry.name.line, entry.name.path, told)
            settings = settings or entry.settings
        return settings

    def _warn(self, place: Placed, message: str) -> None:
        self._warnings.append(f"line {place.line}: {place.path.rpartition('.')[0]}: {message}")
