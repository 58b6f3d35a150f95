"""What a person reads of a run: one self-contained HTML page, and a model card. Both are made from the files of the RUN folder alone.
A page on one model is made from what `inspection.inspect` found.

records     the files of one RUN folder, read
files       a file written whole
formats     numbers as text
markup      text made safe in YAML and Markdown
svg         marks, axes and text of a drawing
charts      lines, heat map, bars, ranges, bubbles
figures     a chart with its caption and legend
exported    what a page says about the exported files,
usage       how to call them,
budget      the limits,
front       everything a search tried,
quality     about the answers that are chosen,
generated   about those that are written,
material    about the data,
sections    and about the whole run
comparison  what a page says about several runs
page        report.html
card        card.md
inspected   what a page says about one model
"""

from lightune.reports.card import write_card
from lightune.reports.front import write_front_csv
from lightune.reports.inspected import write_inspection
from lightune.reports.page import write_report

__all__ = ["write_card", "write_front_csv", "write_inspection", "write_report"]
