//! Types that several kinds share: conditions, schema fragments, durations and quantities.

pub mod architecture;
pub mod conditions;
pub mod duration;
pub mod quantity;
pub mod schema;
pub mod text;
pub mod words;
