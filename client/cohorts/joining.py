# SPDX-License-Identifier: Apache-2.0
"""Whose each decoded frame is and what the table says of it, or why it does not enter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from client.cohorts.ingest import NOBODY, refused_record
from client.cohorts.journal import Entry, StoredFrame
from client.cohorts.records import FileRecord
from client.cohorts.sources import Layout, SourceFile
from client.cohorts.tables import LabelTable
from client.pseudonyms import Pseudonyms

_NO_PATIENT = {
    "patient-folders": "lies outside the patients' folders; move it into the folder of its patient",
    "table": "the table has no line with a patient for it; add one",
    "dicom": "its header has no patient id, and the table has no line with a patient for it; add one",
    "nifti": "a NIfTI file does not say whose it is; put it into a folder named by its patient, or add a line with a patient to the table",
}


@dataclass(frozen=True)
class Decision:
    """What becomes of one frame: `frame` and `cells` of one that enters; of any other the record says why not."""

    record: FileRecord
    frame: StoredFrame | None = None
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class Join:
    """Brings together files and table. The same entry gives the same decisions."""

    layout: Layout
    table: LabelTable | None
    pseudonyms: Pseudonyms

    def decisions(self, source: SourceFile, entry: Entry) -> Iterator[Decision]:
        """One for each frame of a file, or one for the whole file when it was refused."""
        if entry.refused is not None:
            yield Decision(entry.refused)
        for frame in entry.frames:
            yield Decision(frame.record) if frame.record.refused else self._decision(source, frame)

    def _decision(self, source: SourceFile, frame: StoredFrame) -> Decision:
        patient = self._patient(source, frame.record)
        if patient is None:
            return Decision(refused_record(frame.record, _NO_PATIENT.get(self.layout, "it has no patient id; give it one")))
        cells = () if self.table is None else self.table.cells_for(source.name, patient)
        if cells is None:
            return Decision(refused_record(frame.record, "the table has no line for it or its patient; add one, or take it out"))
        labels = 0 if self.table is None else len(self.table.listed.labels)
        if labels and not any(cells[:labels]):
            return Decision(refused_record(frame.record, "its label is empty in the table; fill it, or take it out"))
        return Decision(frame.record.model_copy(update={"patient": patient}), frame, cells)

    def _patient(self, source: SourceFile, record: FileRecord) -> str | None:
        if self.table is not None and (named := self.table.patient_of(source.name)) is not None:
            return named
        if self.layout in ("patient-folders", "nifti") and source.folder is not None and source.folder.strip():
            return self.pseudonyms.of(source.folder)
        header = record.patient
        return None if header in (None, NOBODY) or self.layout in ("patient-folders", "nifti", "npz") else header
