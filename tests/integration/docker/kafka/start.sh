# As the official image does: KAFKA_NODE_ID=1 becomes node.id=1 in server.properties; a new folder of data is formatted.
set -eu
java="java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp /opt/kafka/libs/*"
set -f # the class path's star is Java's, not the shell's
env | sed -n 's/^KAFKA_\([A-Z_]*\)=\(.*\)$/\1 \2/p' | while read -r name value; do
  echo "$(echo "$name" | tr 'A-Z_' 'a-z.')=$value"
done > server.properties
[ -e "$KAFKA_LOG_DIRS/meta.properties" ] || $java -Xmx128m kafka.tools.StorageTool format -t "$CLUSTER_ID" -c server.properties
exec $java -Xmx512m kafka.Kafka server.properties
