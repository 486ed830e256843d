"""Find duplicates and near-duplicates over all sources and splits, and decide which documents stay.

reads   every block's .sketch (exact hashes, band keys [, signatures]) and .docs; an index of earlier runs,
        where requested
writes  dedupe/fates/fates.cols, clusters.cols (dedupe/clusters.py), dedupe/table/clusters.parquet, removals.parquet; the index
unit    group of blocks (split, documents, cluster) . range of keys (sort) . group of components (decide) .
        whole (exact, components, fates, table)
balance one survivor per component of train documents; none where the component holds a validation or test
        document
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from btlm_data import by_group
from btlm_data.blocks import Block
from btlm_data.dedupe import clusters, decided, gates, removals
from btlm_data.dedupe.index import Index
from btlm_data.dedupe.settings import ClusterSettings
from btlm_data.dedupe.sizes import Nominated, Sizes
from btlm_data.dedupe.steps import VERSION, Steps
from btlm_data.dedupe.text_steps import KeptTextsPlanner, MembersPlanner, TextSteps, list_by_group
from btlm_data.engine.runner import Runner
from btlm_data.errors import ConfigError
from btlm_data.estimate import Estimate, Workload
from btlm_data.fingerprint import digest
from btlm_data.formats.columns import Columns
from btlm_data.recipe.models import DedupeSettings, Run
from btlm_data.task import Artifact, Counts, TaskResult
from btlm_data.task_files import write_list

MAX_DOCUMENTS = 2**32 - 1


class Deduplicated(msgspec.Struct, frozen=True):
    """What the stage hands on. copies: clusters.cols. counts: its cells of the ledger. index_lineage: of the
    index it matched against.
    """

    fates: Artifact
    clusters: Artifact
    removals: Artifact
    copies: Artifact
    summary: Mapping[str, Any]
    counts: Counts
    index_lineage: list[list[str]]


def estimate(workload: Workload) -> list[Estimate]:
    """What finding duplicates takes, besides what an index of earlier runs adds."""
    dedupe = workload.settings.dedupe
    if dedupe.method == "none":
        return []
    settings = ClusterSettings(dedupe, workload.run.memory_per_worker)
    in_components = Nominated(
        round(workload.volume.documents * workload.in_components),
        round(workload.volume.text_bytes * workload.in_components),
    )
    return Sizes(workload.volume.documents, settings).estimate(
        workload.rates, workload.volume.parts, workload.blocks, in_components
    )


def run(
    runner: Runner,
    blocks: Sequence[Block],
    table: Artifact,
    dedupe: DedupeSettings,
    how: Run,
    plan_members: MembersPlanner,
    plan_kept_texts: KeptTextsPlanner | None,
) -> Deduplicated | None:
    """Deduplicate all blocks; None if the recipe asks for none. table: of the blocks. plan_members,
    plan_kept_texts: members.py; without the latter nothing is added to an index.

    Raises SafetyStop if a source would lose more than `max_removed` of its bytes, ConfigError for an index of
    another kind.
    """
    if dedupe.method == "none":
        return None
    total = blocks[-1].last_ordinal if blocks else 0
    if total > MAX_DOCUMENTS:
        raise ConfigError(
            f"The corpus has {total:,} documents; deduplication numbers them with 32 bits, up to {MAX_DOCUMENTS:,}. "
            "Prepare it in parts, each with --dedupe-index, so that later parts are deduplicated against earlier ones."
        )
    settings = ClusterSettings(dedupe, how.memory_per_worker, threads=how.threads_alone)
    index = None
    if dedupe.index is not None:
        with runner.removing_damaged():
            index = Index(
                dedupe.index, _content(runner, blocks, settings), settings.index_kind, settings.index_needs
            )
        settings = replace(settings, index=index.reader)
    lineage = digest(
        VERSION,
        [
            [b.split, b.num_documents, b.docs.checksum, b.sketch.checksum if b.sketch else None]
            for b in blocks
        ],
        dedupe.model_dump(
            mode="json", exclude={"max_removed", "max_component", "expected_removed", "preset", "index"}
        ),
        index.reader.lineage if index is not None else None,
    )
    is_to_add = index is not None and not index.is_added and plan_kept_texts is not None
    steps = Steps(blocks, table, settings, lineage, keeps_keys=is_to_add)
    work = runner.stores.work
    work.delete([decided.NAME])
    pairs: Artifact | None = None
    compared: Sequence[Artifact] = ()
    if settings.by_text:
        done = TextSteps(steps, plan_members).run(runner)
        joined, members, pairs, compared = done.joined, done.members, done.pairs, done.compared
    else:
        joined = steps.run(runner)
        planned = plan_members(joined.components, False)
        members = list_by_group(runner, planned, joined.num_groups, settings.memory_bytes)
    decided_groups = runner.run(removals.plan(joined.num_groups, members, compared, settings, lineage))
    runner.named.add(name := "dedupe/decided-groups.json")
    listed = write_list(work, name, [_output(result, ".cols") for result in decided_groups])
    [fates] = runner.run(clusters.plan_fates(listed, total, lineage))
    shown = clusters.merged([result.counts.extra["largest"] for result in decided_groups])
    ranges = runner.run(clusters.plan_clusters(blocks, joined.components, fates, shown, lineage))
    num_clusters = sum(result.counts.extra["clusters"] for result in decided_groups)
    counts, removed, summary = clusters.summarised(ranges, shown, num_clusters)
    if dedupe.verify == "signature":
        summary["verified_pairs"] = {
            "compared": joined.extra["compared"],
            "below_threshold": joined.extra["rejected"],
        }
    if settings.by_text:
        summary["compared_pairs"] = dict(done.amounts)
    tables = _tables(runner, {"clusters": ranges, "removals": decided_groups})
    decided.write(
        work,
        decided.Decided(
            dedupe,
            joined.num_groups,
            joined.components,
            members,
            pairs,
            decided.amounts(counts),
            index.reader.runs if index is not None else (),
        ),
    )
    runner.named.add(decided.NAME)
    evidence = gates.Evidence(
        runner.stores, tables["clusters"], tables["removals"], joined.components, members
    )
    gates.check(removed, summary, dedupe, how.accept_removal or how.accept_removal_of, evidence)
    files = {artifact.name: artifact for artifact in fates.outputs}
    if index is not None and plan_kept_texts is not None and not index.is_added:
        keeps_signatures = "bands" in settings.key_kinds and not settings.by_text
        sketches = (
            [(b.first_ordinal, b.sketch) for b in blocks if b.sketch is not None] if keeps_signatures else []
        )
        with runner.removing_damaged():
            texts, stays = [], None
            if settings.by_text:
                kept = plan_kept_texts(files[clusters.CLUSTERS])
                texts = [(0, artifact) for result in runner.run(kept) for artifact in result.outputs]
                stays = Columns(work, files[clusters.CLUSTERS])["text_stays"]
            index.add(joined.keys, sketches, total, work, texts, stays)
            runner.discard_files("dedupe/kept-texts")
    return Deduplicated(
        files[clusters.FATES],
        tables["clusters"],
        tables["removals"],
        files[clusters.CLUSTERS],
        summary,
        counts,
        index.reader.lineage if index is not None else [],
    )


def discard_passed(runner: Runner) -> None:
    """Remove what was moved once more since: the dataset is complete."""
    for folder in ("dedupe/members", "dedupe/pairs"):
        by_group.discard_passed(runner.stores.work, folder)


def _tables(runner: Runner, parts: Mapping[str, Sequence[TaskResult]]) -> dict[str, Artifact]:
    """clusters.parquet and removals.parquet. parts: results of the tasks that wrote the parts of each."""
    lists: dict[str, Artifact] = {}
    for kind, results in parts.items():
        runner.named.add(name := f"dedupe/{kind}.json")
        artifacts = [_output(result, ".parquet") for result in results]
        lists[f"{kind}.parquet"] = write_list(runner.stores.work, name, artifacts)
    results = runner.run(removals.plan_tables(lists))
    return {kind: result.outputs[0] for kind, result in zip(parts, results, strict=True)}


def _output(result: TaskResult, ending: str) -> Artifact:
    [artifact] = [output for output in result.outputs if output.name.endswith(ending)]
    return artifact


def _content(runner: Runner, blocks: Sequence[Block], settings: ClusterSettings) -> str:
    """A run's name in an index: its documents' texts and the kind of its sketches.

    Other tokenizers or lengths make the same run.
    """
    texts = [
        [block.split, Columns(runner.stores.work, block.sketch).meta["content"]]
        for block in blocks
        if block.sketch is not None
    ]
    return digest(list(settings.index_kind), settings.index_needs, settings.dedupe.holdout, texts)[:32]
