//! Schema fragments with bounds for the strings and integers of the API.
//!
//! Integers are int64 with bounds, because `u32` would emit `format: uint32`, about which API servers warn.

use schemars::{Schema, SchemaGenerator, json_schema};

/// An integer from `MIN` to `MAX`.
#[must_use]
pub fn bounded<const MIN: i64, const MAX: i64>(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int64", "minimum": MIN, "maximum": MAX})
}

/// An EVM address: `0x` and 40 hexadecimal digits.
#[must_use]
pub fn address(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 42, "pattern": "^0x[0-9a-fA-F]{40}$"})
}

/// 32 bytes: `0x` and 64 hexadecimal digits.
#[must_use]
pub fn hash32(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 66, "pattern": "^0x[0-9a-f]{64}$"})
}

/// A whole number of base units of a token, 0 to 2^128-1 (at most 39 digits).
#[must_use]
pub fn amount(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 39, "pattern": "^(0|[1-9][0-9]{0,38})$"})
}

/// A price in whole tokens: at most 9 digits before the decimal point and 18 after it.
#[must_use]
pub fn price(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 28, "pattern": "^(0|[1-9][0-9]{0,8})(\\.[0-9]{1,18})?$"})
}

/// A duration in the notation of Kubernetes and Go: `90s`, `30m`, `1h30m`. Its length is limited so that it does not
/// overflow when it is counted in nanoseconds, as by `duration()` in CEL.
#[must_use]
pub fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 24, "pattern": "^([0-9]{1,5}h)?([0-9]{1,7}m)?([0-9]{1,9}s)?$", "minLength": 2})
}

/// A quantity of CPU as people write it, a whole number or text: `32`, `"1.5"`, `500m`. Deserialize it by
/// [`quantity::text`](super::quantity::text).
#[must_use]
pub fn cpu_quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-int-or-string": true, "minimum": 0, "maximum": 999_999, "maxLength": 20,
        "pattern": "^([0-9]{1,6}(\\.[0-9]{1,9})?|[0-9]{1,9}m)$"})
}

/// A quantity of bytes as people write it, a whole number or text: `128Gi`, `1.5Gi`, `1e9`; less than 2^63 for 64 nodes
/// together. Deserialize it by [`quantity::text`](super::quantity::text).
#[must_use]
pub fn byte_quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-int-or-string": true, "minimum": 0, "maximum": 9_007_199_254_740_991_i64, "maxLength": 30,
        "pattern": "^([0-9]{1,17}(\\.[0-9]{1,9})?|[0-9]{1,14}(\\.[0-9]{1,9})?(k|Ki)|[0-9]{1,11}(\\.[0-9]{1,9})?(M|Mi)|[0-9]{1,8}(\\.[0-9]{1,9})?(G|Gi)|[0-9]{1,5}(\\.[0-9]{1,9})?(T|Ti)|[0-9]{1,2}(\\.[0-9]{1,9})?(P|Pi)|[0-9]{1,17}m|[1-9][0-9]{0,7}(\\.[0-9]{1,9})?[eE][0-9])$"})
}

/// A Kubernetes quantity of CPU: `500m`, `32`.
#[must_use]
pub fn cpu(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 10, "pattern": "^[0-9]{1,6}(\\.[0-9]{1,3}|m)?$"})
}

/// A Kubernetes quantity of bytes: `128Gi`, `80G`; less than 2^63 for 64 nodes together.
#[must_use]
pub fn bytes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 20, "pattern": "^([0-9]{1,17}|[0-9]{1,14}(k|Ki)|[0-9]{1,11}(M|Mi)|[0-9]{1,8}(G|Gi)|[0-9]{1,5}(T|Ti)|[0-9]{1,2}(P|Pi))$"})
}

/// A version of two numbers, compared as numbers: `9.0`, `12.4`.
#[must_use]
pub fn version(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 9, "pattern": "^[0-9]{1,4}\\.[0-9]{1,4}$"})
}

/// An RFC 1123 label.
#[must_use]
pub fn name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"})
}

/// An RFC 1123 subdomain: labels separated by dots.
#[must_use]
pub fn subdomain(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 253, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"})
}

/// A region: an RFC 1123 label, or empty.
#[must_use]
pub fn region(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 63, "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$"})
}

/// A set of at most `MAX` RFC 1123 labels.
#[must_use]
pub fn names<const MAX: i64>(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": MAX, "x-kubernetes-list-type": "set", "items": name(generator)})
}

/// Standard conditions, keyed by type. Each condition is atomic and has one field manager, because ownership of single
/// fields would take a third of an object.
#[must_use]
pub fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let mut items =
        <k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition as schemars::JsonSchema>::json_schema(
            generator,
        );
    items.insert("x-kubernetes-map-type".into(), "atomic".into());
    json_schema!({"type": "array", "maxItems": 32, "items": items, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]})
}

/// Like `matchLabels` of a label selector: at most 16 labels with keys and values that are valid for a node.
#[must_use]
pub fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "maxProperties": 16,
    "additionalProperties": {"type": "string", "maxLength": 63, "pattern": "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"},
    "x-kubernetes-validations": [{
        "rule": "self.all(key, key.size() <= 317 && key.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$'))",
        "message": "a label key is invalid: use the format of `kubectl label`, such as gpu.example.org/rack",
    }]})
}
