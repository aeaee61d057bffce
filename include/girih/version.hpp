#pragma once

// CMakeLists.txt reads the project's version from these lines.
#define GIRIH_VERSION_MAJOR 0
#define GIRIH_VERSION_MINOR 1
#define GIRIH_VERSION_PATCH 0
#define GIRIH_VERSION "0.1.0"
