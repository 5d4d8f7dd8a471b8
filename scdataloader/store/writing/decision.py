"""What a command means for the folder it names: a new store, more of one, the rest of one, nothing, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence

from scdataloader.store.gene_spaces import GeneNumbers, GeneSpace, SpaceSelection, choose_spaces
from scdataloader.store.writing.folder import FolderState
from scdataloader.store.writing.plan import Plan, PlannedShard
from scdataloader.store.writing.scan import Options, Scanned


def layout_of(state: FolderState, options: Options) -> str:
    """How cells will be ordered.

    Raises:
        FileNotFoundError: there is no store to append to.
        ValueError: the store has another layout, or values of another kind, than what is to be appended.
    """
    if not options.append:
        return options.layout or "source"
    manifest = state.manifest
    if manifest is None:
        unfinished = "its first conversion is unfinished: finish that first" if state.plan else "leave append out"
        raise FileNotFoundError(f"there is no store in {state.folder} to append to; {unfinished}")
    if options.layout not in (None, manifest.layout):
        raise ValueError(
            f"{state.folder} has the layout {manifest.layout!r}, which appended cells get as well, not "
            f"{options.layout!r}"
        )
    kinds = {source.kind for source in manifest.sources}
    if kinds != {options.kind}:
        raise ValueError(
            f"{state.folder} holds {' and '.join(sorted(kinds))}, and {options.kind} are to be appended: convert with "
            f"values={'any' if options.kind == 'counts' else 'counts'!r}, or into another store"
        )
    return manifest.layout


def is_done(state: FolderState, scanned: Sequence[Scanned], options: Options) -> bool:
    """Whether the store has all of this already.

    Raises:
        FileExistsError: there is a store of something else, and sources are not to be appended.
        ValueError: the store has some of the sources that are to be appended.
    """
    manifest = state.manifest
    if manifest is None:
        return False
    there, asked = [s.fingerprint for s in manifest.sources], [one.planned.fingerprint for one in scanned]
    if options.append:
        if there[-len(asked) :] == asked:
            return True
        names = dict(zip(there, (source.name for source in manifest.sources), strict=True))
        repeated = [one.planned for one in scanned if one.planned.fingerprint in names]
        if repeated:
            raise ValueError(
                f"{state.folder} has {repeated[0].name} already, as {names[repeated[0].fingerprint]} (fingerprint "
                f"{repeated[0].fingerprint}); leave it out of what is appended"
            )
        return False
    same_kind = {source.kind for source in manifest.sources} == {options.kind}
    if there == asked and same_kind and manifest.layout == (options.layout or "source"):
        return True
    raise FileExistsError(
        f"{state.folder} is a store already, of other sources or with other options; add to it with append (--append), "
        "name another folder, or delete it"
    )


def spaces_of(state: FolderState, scanned: Sequence[Scanned], names: GeneNumbers) -> SpaceSelection:
    """The gene spaces of what is to be converted; ``names`` are those of all its genes.

    Raises:
        StoreFormatError: those of the store that is added to are damaged.
    """
    there = () if state.manifest is None else state.manifest.spaces
    ids = [GeneSpace(state.folder, record).read().tolist() for record in there]
    return choose_spaces(names, [one.genes for one in scanned], ids)


def plan_of(
    state: FolderState, scanned: Sequence[Scanned], spaces: SpaceSelection, options: Options, layout: str
) -> Plan:
    """What is to be done, which is what the unfinished conversion in the folder was to do, if there is one.

    Raises:
        ValueError: that one was to do something else.
    """
    manifest = state.manifest
    plan = Plan(
        layout=layout,
        seed=options.seed if layout == "shuffled" else 0,
        kind=options.kind,
        cells_per_shard=options.cells_per_shard,
        appended_to=state.digest,
        first_source=0 if manifest is None else len(manifest.sources),
        first_shard=0 if manifest is None else len(manifest.shards),
        sources=tuple(one.planned for one in scanned),
        spaces=spaces.digests,
        space_of=spaces.of_source,
        shards=tuple(
            PlannedShard(source=i, first=first, last=last)
            for i, one in enumerate(scanned)
            for first, last in one.ranges
        ),
    )
    difference = None if state.plan is None else plan.difference(state.plan)
    if difference is not None:
        instead = "delete the folder" if manifest is None else "delete its conversion.json"
        raise ValueError(
            f"{state.folder} has an unfinished conversion in it that is not this one: {difference}. Give the command "
            f"of that one again to finish it, or {instead} to give it up"
        )
    return plan
