"""Random colour changes of a batch, each sample with its own: jitter, greyscale, blur and solarisation.

`plan` draws what happens to each sample, on the CPU: the same on every device, and which samples an operation concerns
is known without asking the device. Each operation is torchvision's of the same name; the order (jitter, greyscale,
blur, solarise) is that of ConMIM, CMAE, BYOL and MoCo v3. `groups` carries a plan out with torch, on groups of samples
that meet the same operation, which makes few and large kernels; `pixels` with compiled loops over one image after
another, which stays in a processor's cache from the first step to the last. `apply` chooses.

All but hue works on any number of channels. Grey is the ITU's weighted sum of red, green and blue where there are
three channels, and the mean over the channels where there are other numbers: contrast goes away from or towards its
mean over the image, saturation and greyscale away from or towards its value at each pixel (in images of one channel
that changes nothing). Hue is an angle between red, green and blue, so without exactly three channels it is skipped;
`unmask pretrain` says so (`defaults.fit_settings`).
"""
