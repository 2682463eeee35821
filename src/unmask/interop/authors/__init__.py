"""The authors' names and golden cases, one file a method, and the table of them."""

from __future__ import annotations

from unmask.interop.authors import (
    beit,
    bootmae,
    byol,
    cae,
    can,
    cmae,
    conmim,
    convmae,
    data2vec,
    dino,
    dmae,
    extrema,
    ibot,
    m3ae,
    mae,
    maskfeat,
    mixmask,
    mocov3,
    msn,
    sim,
    simclr,
    simmim,
    simsiam,
    supmae,
)
from unmask.interop.authors.case import Authors

AUTHORS: dict[str, Authors] = {
    "conmim": conmim.AUTHORS,
    "cmae": cmae.AUTHORS,
    "mae": mae.AUTHORS,
    "simmim": simmim.AUTHORS,
    "data2vec": data2vec.AUTHORS,
    "maskfeat": maskfeat.AUTHORS,
    "bootmae": bootmae.AUTHORS,
    "dmae": dmae.AUTHORS,
    "supmae": supmae.AUTHORS,
    "convmae": convmae.AUTHORS,
    "beit": beit.AUTHORS,
    "cae": cae.AUTHORS,
    "simclr": simclr.AUTHORS,
    "mocov3": mocov3.AUTHORS,
    "byol": byol.AUTHORS,
    "simsiam": simsiam.AUTHORS,
    "mixmask": mixmask.AUTHORS,
    # MixMask with Un-Mix beside it.
    "mixmask_both": mixmask.AUTHORS_BOTH,
    "sim": sim.AUTHORS,
    "extrema": extrema.AUTHORS,
    "can": can.AUTHORS,
    # CAN with the noise added beside the picture instead of in place.
    "can_clean": can.AUTHORS,
    "dino": dino.AUTHORS,
    "ibot": ibot.AUTHORS,
    "msn": msn.AUTHORS,
    "m3ae_medical": m3ae.AUTHORS,
}
