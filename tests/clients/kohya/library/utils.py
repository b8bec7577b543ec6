"Logging, and a picture resized: by area where it shrinks, else by Lanczos"
import logging
import cv2, numpy as np
from PIL import Image

def setup_logging(*args, **kwargs): logging.basicConfig(level=logging.INFO)

def pil_resize(image, size): return np.asarray(Image.fromarray(image).resize(size, Image.LANCZOS))

def resize_image(image, width, height, resized_width, resized_height, resize_interpolation=None):
    if resized_width < width and resized_height < height: return cv2.resize(image, (resized_width, resized_height), interpolation=cv2.INTER_AREA)
    return pil_resize(np.ascontiguousarray(image), (resized_width, resized_height))
