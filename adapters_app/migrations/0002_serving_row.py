from django.db import migrations


def make_serving(apps, schema_editor):
    apps.get_model("adapters_app", "Serving").objects.create(id=1)


class Migration(migrations.Migration):
    dependencies = [("adapters_app", "0001_initial")]
    operations = [migrations.RunPython(make_serving, migrations.RunPython.noop)]
