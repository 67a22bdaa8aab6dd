//! What runs for a reservation, and what is kept of a job after its end.

pub mod recipient;
pub mod results;
