from django.db import migrations


def make_folds(apps, schema_editor):
    Fold = apps.get_model("corrections", "Fold")
    Fold.objects.bulk_create(Fold(number=number) for number in range(5))


class Migration(migrations.Migration):
    dependencies = [("corrections", "0001_initial")]
    operations = [migrations.RunPython(make_folds, migrations.RunPython.noop)]
