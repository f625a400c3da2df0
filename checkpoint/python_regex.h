// Where PCRE2's regular expressions are not those of Python's re.
#pragma once

#include <string>

namespace lorashard {

// Error (status 2) at `where`, naming the place, if `expression` holds something that PCRE2 reads
// otherwise than Python 3.11 does on the names of modules (ASCII, no line breaks), or that Python
// refuses and PCRE2 takes: the quantifier {,n}, a quantifier of a quantifier, escapes and groups
// that only one of the two has, classes of POSIX, flags in the middle.
void refuse_unlike_python(const std::string& expression, const std::string& where);

}  // namespace lorashard
