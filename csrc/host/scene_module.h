#pragma once

#include <pybind11/pybind11.h>

// Adds SceneTextures and scene_pattern to the module.
void bind_scenes(pybind11::module_& m);
