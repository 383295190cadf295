#ifndef FDATRD_CHROMA_FILTER_H
#define FDATRD_CHROMA_FILTER_H

#include <VapourSynth4.h>

/* Adds fdatrd.ChromaFilter to the plugin. */
void chroma_filter_register(VSPlugin *plugin, const VSPLUGINAPI *vspapi);

#endif
