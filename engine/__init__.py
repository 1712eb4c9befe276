"""Bundle and images to captions. Runs without torch.

>>> from engine import Captioner
>>> with Captioner.open("examples/bundle") as captioner:  # doctest: +SKIP
...     for result in captioner.caption(["photo.jpg"]):
...         print(result)
"""

from engine.captioner import Captioner, CaptionOptions
from engine.images import Source
from engine.records import Alternative, Attention, Failure, Record

__all__ = ["Alternative", "Attention", "CaptionOptions", "Captioner", "Failure", "Record", "Source"]
