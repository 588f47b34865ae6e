/* spanprof.h for C++11: spans that end with a scope, whatever the compiler. */
#ifndef SPANPROF_HPP
#define SPANPROF_HPP

#include <spanprof.h>

namespace spanprof {

/* A span as long as the object. It moves, as from one scope or thread to another, and
 * is not copied. For the threads, see `end` in spanprof.h.
 *
 *     SPANPROF_CALLSITE(decode_callsite, "decode");
 *     spanprof::span span(decode_callsite);
 */
class span {
  public:
    span() noexcept = default;

#ifndef SPANPROF_DISABLE
    explicit span(spanprof_callsite &callsite) noexcept
        : handle(spanprof_begin(&callsite)) {}

    span(spanprof_callsite &callsite, const spanprof_parent &parent) noexcept {
        const spanprof_options options = {&parent, nullptr, 0};
        handle = spanprof_begin_with(&callsite, &options);
    }

    template <std::size_t count>
    span(spanprof_callsite &callsite, const spanprof_label (&labels)[count]) noexcept {
        const spanprof_options options = {nullptr, labels, count};
        handle = spanprof_begin_with(&callsite, &options);
    }
#else
    template <typename... anything> explicit span(anything &&...) noexcept {}
#endif

    span(const span &) = delete;
    span &operator=(const span &) = delete;

    span(span &&other) noexcept : handle(other.handle) { other.handle = nullptr; }
    span &operator=(span &&other) noexcept {
        if (this != &other) {
            end();
            handle = other.handle;
            other.handle = nullptr;
        }
        return *this;
    }

    ~span() { end(); }

    /* Before the scope does; once more does nothing. */
    void end() noexcept {
        spanprof_end(handle);
        handle = nullptr;
    }

  private:
    spanprof_span handle = nullptr;
};

} // namespace spanprof

#endif
