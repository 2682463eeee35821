"""From a folder, list, archive or built-in set of images to uint8 crops in batches.

`sources` says which images there are, `decode` turns bytes into pixels, `crop` cuts them, `loader` makes
resumable batches, `statistics` measures a source up front, `batch` is what travels on to the device.
"""
