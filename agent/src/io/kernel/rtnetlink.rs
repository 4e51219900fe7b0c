//! Two questions to the kernel that aya has no call for. Each is one request and one answer on a socket of its own.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};
use netlink_packet_route::tc::{TcHandle, TcMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Id of the XDP program on an interface, if there is one.
pub(super) fn xdp_program(ifindex: u32) -> io::Result<Option<u32>> {
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) =
        request(RouteNetlinkMessage::GetLink(link), 0)?
    else {
        return Ok(None);
    };
    let xdp = link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    });
    Ok(xdp.into_iter().flatten().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) => Some(id),
        _ => None,
    }))
}

/// Removes the clsact queueing discipline of an interface, with all its filters.
pub(super) fn remove_clsact(ifindex: u32) -> io::Result<()> {
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    let mut message = TcMessage::with_index(index);
    message.header.parent = TcHandle::CLSACT;
    match request(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK)? {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}

fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<NetlinkPayload<RouteNetlinkMessage>> {
    let mut packet = NetlinkMessage::from(message);
    packet.header.flags = NLM_F_REQUEST | flags;
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    Ok(answer.payload)
}
