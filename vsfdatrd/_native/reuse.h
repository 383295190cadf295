#ifndef FDATRD_DEAL_H
#define FDATRD_DEAL_H

#include <VapourSynth4.h>

/* Adds fdatrd.ReuseFrames to the plugin. */
void deal_register(VSPlugin *plugin, const VSPLUGINAPI *vspapi);

#endif
