"As later versions of the script call it"
from .train_util import glob_images_pathlib  # noqa: F401
