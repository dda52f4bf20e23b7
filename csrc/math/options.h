// Options as data. A family lists each of its options once, in a macro that takes three other
// macros:
//
//   OPTION(type, name, default)    passed from Python as a double, and read by kernels
//   GIVEN(name, default)           passed from Python; the host derives fields from it
//   DERIVED(type, name, default)   derived by the host, and read by kernels
//
// The macros below expand such a list to the fields of a struct, their conversion, their
// comparison, and the names and the order in which Python packs the numbers. The type may be `T`,
// the arithmetic type of the kernels.
#pragma once

#define VAE_FUSED_OMIT(...)

// The fields that kernels read. The struct must be a template with the type parameter T.
#define VAE_FUSED_FIELD(type, name, value) type name = type(value);
#define VAE_FUSED_FIELDS(LIST) LIST(VAE_FUSED_FIELD, VAE_FUSED_OMIT, VAE_FUSED_FIELD)

// The fields that Python passes.
#define VAE_FUSED_NUMBER(name, value) double name = value;
#define VAE_FUSED_NUMBER_OF_OPTION(type, name, value) VAE_FUSED_NUMBER(name, value)
#define VAE_FUSED_NUMBERS(LIST) LIST(VAE_FUSED_NUMBER_OF_OPTION, VAE_FUSED_NUMBER, VAE_FUSED_OMIT)

// Calls visit(name, number) for each number that Python passes, in order.
#define VAE_FUSED_VISIT(name, value) visit(#name, name);
#define VAE_FUSED_VISIT_OPTION(type, name, value) VAE_FUSED_VISIT(name, value)
#define VAE_FUSED_VISIT_NUMBERS(LIST) LIST(VAE_FUSED_VISIT_OPTION, VAE_FUSED_VISIT, VAE_FUSED_OMIT)

// to.name = from.name, for the options alone and for all fields.
#define VAE_FUSED_CONVERT(type, name, value) to.name = type(from.name);
#define VAE_FUSED_CONVERT_OPTIONS(LIST) LIST(VAE_FUSED_CONVERT, VAE_FUSED_OMIT, VAE_FUSED_OMIT)
#define VAE_FUSED_CONVERT_FIELDS(LIST) LIST(VAE_FUSED_CONVERT, VAE_FUSED_OMIT, VAE_FUSED_CONVERT)

// Whether all fields of a and b are equal.
#define VAE_FUSED_EQUAL(type, name, value) &&a.name == b.name
#define VAE_FUSED_EQUAL_FIELDS(LIST) (true LIST(VAE_FUSED_EQUAL, VAE_FUSED_OMIT, VAE_FUSED_EQUAL))

// A test appends an option to a list through these macros: see tests/native/test_option_lists.py.
#ifndef VAE_FUSED_EXTRA_SCALE_OPTIONS
#define VAE_FUSED_EXTRA_SCALE_OPTIONS(OPTION)
#endif
#ifndef VAE_FUSED_EXTRA_LATENT_OPTIONS
#define VAE_FUSED_EXTRA_LATENT_OPTIONS(OPTION)
#endif
#ifndef VAE_FUSED_EXTRA_DEVICE_SCALARS
#define VAE_FUSED_EXTRA_DEVICE_SCALARS(SCALAR)
#endif
