from farm.api import Batch as Batch
from farm.api import Farm as Farm
from farm.api import Film as Film
from farm.api import Job as Job
from farm.api import jobs as jobs
from farm.api import render as render
from farm.api import render_async as render_async
from farm.api import submit as submit
from farm.api import submit_async as submit_async
from farm.omnirt import audio2video as audio2video
from farm.omnirt import generate as generate
from farm.omnirt import validate as validate
from farm.omnirt_records import GenerateResult as GenerateResult

__version__: str
