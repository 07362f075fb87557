// SPDX-License-Identifier: Apache-2.0
// What TensorRT's Python bindings need in order to be loaded, and nothing behind it: every
// function returns null. Compiled under the name of each library that the bindings ask for.

extern "C" {
void * createInferBuilder_INTERNAL() { return nullptr; }
void * createInferRuntime_INTERNAL() { return nullptr; }
void * createInferRefitter_INTERNAL() { return nullptr; }
void * createNvOnnxParser_INTERNAL() { return nullptr; }
void * createNvOnnxParserRefitter_INTERNAL() { return nullptr; }
void * getPluginRegistry() { return nullptr; }
void * getBuilderPluginRegistry() { return nullptr; }
bool initLibNvInferPlugins() { return true; }
int getNvOnnxParserVersion() { return 0; }
}

// Parsers of other formats, up to 8.6.
namespace nvuffparser
{
enum class FieldType : int { };
struct FieldMap { FieldMap(char const *, void const *, FieldType, int); };
FieldMap::FieldMap(char const *, void const *, FieldType, int) { }
void * createUffParser() { return nullptr; }
}
namespace nvcaffeparser1
{
void * createCaffeParser() { return nullptr; }
void shutdownProtobufLibrary() { }
}
