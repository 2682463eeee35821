"""Random colour changes of a batch, each sample with its own: jitter, greyscale, blur and solarisation.

`plan` draws what happens to each sample, on the CPU: the same on every device, and which samples an operation concerns
is known without asking the device. Each operation is torchvision's of the same name; the order (jitter, greyscale,
blur, solarise) is that of ConMIM, CMAE, BYOL and MoCo v3. `groups` carries a plan out with torch, on groups of samples
that meet the same operation, which makes few and large kernels; `pixels` with compiled loops over one image after
another, which stays in a processor's cache from the first step to the last. `apply` chooses.

Images without exactly three channels have no saturation, hue or greyscale, and these are skipped; brightness,
contrast (around the mean over all channels), blur and solarisation work on any number of channels.
"""
