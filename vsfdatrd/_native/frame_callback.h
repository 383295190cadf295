#ifndef FDATRD_PER_FRAME_H
#define FDATRD_PER_FRAME_H

#include <VapourSynth4.h>

/* Adds fdatrd.PerFrame to the plugin. */
void per_frame_register(VSPlugin *plugin, const VSPLUGINAPI *vspapi);

#endif
