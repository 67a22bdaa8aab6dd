//! Types that several kinds use: conditions, schema fragments, durations and quantities.

pub mod conditions;
pub mod duration;
pub mod quantity;
pub mod schema;
