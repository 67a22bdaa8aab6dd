//! What a replica of the gateway does for the others.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use leasehold_planner::provider::connector::StreamRequest;

use crate::{
    registry::Tunnels,
    serve::{Refused, Serve},
    splice::{Timeouts, splice},
    stream::TunnelStream,
    tunnel::OpenError,
    wire::HEADER_PROVIDER,
};

/// Serves the streams that another replica asks for, by connections of this replica alone: streams are forwarded once.
#[derive(Debug)]
pub struct Forward(pub Arc<Tunnels>);

impl Serve for Forward {
    type Opened = TunnelStream;

    async fn open(&self, request: StreamRequest, headers: &HeaderMap) -> Result<TunnelStream, Refused> {
        let provider = headers.get(HEADER_PROVIDER).and_then(|value| value.to_str().ok());
        let provider =
            provider.ok_or_else(|| Refused::new(StatusCode::BAD_REQUEST, "no provider is named"))?;
        let opened = self.0.open_here(provider, &request).await;
        opened.map_err(OpenError::into_refused)
    }

    async fn serve(&self, mut stream: TunnelStream, mut opened: TunnelStream) {
        drop(splice(&mut stream, &mut opened, Timeouts::default()).await);
    }
}
