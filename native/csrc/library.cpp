#include "library.h"

#include <dlfcn.h>

#include <cerrno>
#include <cstdlib>

#include "error.h"

namespace vnpu {

namespace {

std::string chosen(const LibraryChoice& choice, const std::string& path) {
    if (!path.empty()) {
        return path;
    }
    const char* const set = std::getenv(choice.environment);
    return set != nullptr && *set != '\0' ? set : choice.soname;
}

std::string opening(const LibraryChoice& choice) { return "driver '" + std::string(choice.driver) + "': "; }

}  // namespace

Library::Library(const LibraryChoice& choice, const std::string& path)
    : choice_(choice), path_(chosen(choice, path)), handle_(::dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) {
        const char* const why = ::dlerror();
        throw errno_error("open_driver", ENOENT, opening(choice) + (why != nullptr ? why : path_ + " does not open"),
                          std::string(choice.remedy) + ", name it in " + choice.environment +
                              ", or use driver 'host'");
    }
}

void Library::check_same(const std::string& path) const {
    const std::string wanted = chosen(choice_, path);
    if (wanted != path_) {
        throw errno_error("open_driver", EBUSY, opening(choice_) + "this process has opened " + path_ + " already, not " +
                          wanted, "open one library of a vendor in a process");
    }
}

void* Library::find(const char* name, bool needed) const {
    void* const found = ::dlsym(handle_, name);
    if (found == nullptr && needed) {
        throw errno_error("open_driver", ENOSYS, opening(choice_) + path_ + " has no function " + name,
                          std::string("install ") + choice_.release + " or later");
    }
    return found;
}

}  // namespace vnpu
