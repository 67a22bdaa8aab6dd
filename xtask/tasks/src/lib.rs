//! What tasks and tests share: the images of the product as archives.

pub mod image;
mod repository;

pub use repository::root;
