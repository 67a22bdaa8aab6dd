//! What tasks and tests share: the images of the product as archives.

pub mod image;

pub use leasehold_testtools::root;
