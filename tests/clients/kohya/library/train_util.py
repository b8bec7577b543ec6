"The pictures of a folder"
from pathlib import Path

def glob_images_pathlib(folder, recursive=False):
    return sorted(p for p in (Path(folder).rglob('*') if recursive else Path(folder).glob('*')) if p.suffix.lower() in ('.png', '.jpg', '.jpeg', '.webp', '.bmp'))
